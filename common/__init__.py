"""What host and device share: errors, files people write, values, accounts, settings. Imports nothing else of ours."""
