"""Households and their devices: pure physics in `models`, processes in `fleet`."""
