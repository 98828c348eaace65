"""What people configured on this device, kept with its history: who changed what, when, and the way back."""
