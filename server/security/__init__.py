"""Who may ask for what, how often, and over which connection. `docs/security.md` says against whom."""
