"""Tables, figures and documents made of scores."""
