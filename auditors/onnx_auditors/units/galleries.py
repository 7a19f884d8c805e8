"""Pictures to judge by eye."""

PNG = "image/png"


def draw(*a):
    return None


def depth(*a):
    return None
