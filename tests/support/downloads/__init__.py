"""Where models are downloaded from: stand-ins for the hub and for a package index."""
