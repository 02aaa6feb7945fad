"""Text of reports: sections, sentences, de-identification marks, duplicates. It does not depend on images."""
