"""Maps against the regions that radiologists marked."""
