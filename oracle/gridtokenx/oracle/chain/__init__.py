"""The oracle chain (pure): which devices count, how intervals close, how feed rounds close."""
