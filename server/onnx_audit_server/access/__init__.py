"""Who may do what, and how much of it: principals, credentials, scopes and quotas."""
