"""Text of reports: sections, sentences, de-identification marks, duplicates. Nothing here knows of images."""
