"""What binds to trainers: recipes, TRL, verl. Needs the train extra."""
