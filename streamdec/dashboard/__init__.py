"""The web page that shows a feed: a server that subscribes to it, and what the browser runs."""
