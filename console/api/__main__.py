"""Prints the API's description, ``openapi.json``: for ``training-worker contract``."""

import sys

from console.api.openapi import api_document, document_text
from console.api.site import make_api

if __name__ == "__main__":
    sys.stdout.write(document_text(api_document(make_api(None))))
