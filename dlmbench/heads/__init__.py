"""Small trained modules that decoders use beside a frozen backbone."""
