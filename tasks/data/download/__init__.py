"""Downloads over HTTPS and from object stores."""
