"""A page that shows results: its blocks, its figures, its look. Reports of training and of sessions are such pages."""
