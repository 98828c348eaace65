"""What firmware starts: PE images and unified kernel images."""
