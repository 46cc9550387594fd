"""The web console and the HTTP API: NiceGUI on FastAPI, over ``tasks`` and ``routing`` only."""
