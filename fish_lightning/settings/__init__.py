"""Settings: what each may be, checked before a program imports, decodes or writes anything."""
