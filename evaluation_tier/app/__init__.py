"""The page of `tier-app`: a radiograph and sentences in, scores and heat-maps out. Parser and main: `app.py`."""
