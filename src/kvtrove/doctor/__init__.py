"""What this machine does for inference, what that means, and the commands that better it: `kvtrove doctor`."""
