"""What an unknown folder of images and labels holds, and the class file that describes it."""
