"""Logits, loss, optimiser steps and metrics."""
