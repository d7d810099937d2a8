"""The command line: flags made from the settings, a command per use, and what each prints."""
