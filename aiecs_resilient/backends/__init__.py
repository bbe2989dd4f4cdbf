"""The stores. Import them from their modules: a driver loads only when its backend is used."""
