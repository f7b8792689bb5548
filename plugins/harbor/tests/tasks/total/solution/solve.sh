#!/bin/bash

bash /solution/add.sh < numbers.txt > /logs/artifacts/sum.txt
