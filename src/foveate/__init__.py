"""Foveate: find where a vision-language model looks, and stop computing the rest."""
