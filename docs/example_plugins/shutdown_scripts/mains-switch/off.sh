#!/bin/bash
sleep "$1"
kill -s TERM 1
