"""Who may do what: keys of the console and its API, and tenants' secrets."""
