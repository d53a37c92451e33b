"""Random request streams against two servers, compared byte for byte (see ../differential.py)."""
