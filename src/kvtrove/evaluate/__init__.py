"""What each cached byte is worth: cache configurations compared with the exact cache."""
