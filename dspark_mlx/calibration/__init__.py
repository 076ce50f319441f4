"""Calibration of confidences (paper, section 3.2.1) and the metrics that judge it."""
