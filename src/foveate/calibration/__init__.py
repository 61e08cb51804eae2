"""Calibration: from a budget and samples to a policy. `calibrate.py` is the job, in the order in which it is done."""
