"""The pages, put on the application."""

from fastapi import FastAPI

from console.service import Service


def add_pages(app: FastAPI, service: Service) -> None:
    """Put the console's pages on the application."""
