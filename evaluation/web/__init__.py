"""The web page that app.py serves."""
