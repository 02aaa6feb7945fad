"""The page of tier-app, as a Space serves it: all of it is in the package tier-clip."""

from app import main  # of tier-clip; this file has another name, or it would import itself

MODELS = ["owner/name"]  # one or two models on the Hub

if __name__ == "__main__":
    main([*MODELS, "--host", "0.0.0.0"])
