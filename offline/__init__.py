"""Training and export: data sets, targets, methods, evaluation, bundles. Its program is ``streamdec-train``."""
