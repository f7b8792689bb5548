// Renders conversations by a template in Go's language, as Ollama does: JSON in, one line each out.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var given struct {
		Template      string
		Conversations [][]message
	}
	check(json.NewDecoder(os.Stdin).Decode(&given))
	parsed, err := template.New("").Option("missingkey=zero").Parse(given.Template)
	check(err)
	out := json.NewEncoder(os.Stdout)
	for _, messages := range given.Conversations {
		system := ""
		for _, each := range messages {
			if each.Role == "system" {
				system = each.Content
			}
		}
		var text strings.Builder
		check(parsed.Execute(&text, map[string]any{"System": system, "Messages": messages}))
		check(out.Encode(text.String()))
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
