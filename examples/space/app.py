"""The page of `c2d serve`, as a Hugging Face Space runs it."""

from c2d_models.page.app import Settings, serve

if __name__ == "__main__":
    serve(Settings(max_pixels=2**22))
