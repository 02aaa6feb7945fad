"""Text of reports: sections, sentences, de-identification marks, duplicates. This package does not depend on images."""
