"""How the starter model is made: pictures, captions, VAE, text encoder, U-Net, score and installation."""
