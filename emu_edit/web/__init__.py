"""The web page for editing in several turns, with undo."""
