"""Performing one step: its attempts, its context, where it runs, and who hears of it."""
