"""Tools around training: they read run folders or call the Trainer, and only the command line imports them."""
