"""Slow and obviously right: one row at a time, float64, explicit softmax, nothing dropped. Independent of foveate."""
