"""Tools around training that read run folders or call the Trainer; only the command line imports them."""
