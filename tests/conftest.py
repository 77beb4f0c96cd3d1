from hypothesis import settings

settings.register_profile("shared machines", deadline=None)  # what a test takes there says nothing of the code
settings.load_profile("shared machines")
