// A Google Cloud Storage server for tests: fsouza/fake-gcs-server in memory, and before it what that server leaves out and the real
// one has, by the documents of the JSON API: listings whose pages count objects and prefixes together, in one order; generation
// conditions on delete, compose and rewrite; generations of a compose's sources. Prints one JSON line with its port and ends when its
// standard input does, so that it never outlives who started it. What it holds is in memory, or in the directory that is given.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

var (
	listPath    = regexp.MustCompile(`^/storage/v1/b/([^/]+)/o/?$`)
	deletePath  = regexp.MustCompile(`^/storage/v1/b/([^/]+)/o/([^/]+)$`)
	composePath = regexp.MustCompile(`^/storage/v1/b/([^/]+)/o/([^/]+)/compose$`)
	rewritePath = regexp.MustCompile(`^/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)$`)
)

type front struct {
	server *fakestorage.Server
	behind http.Handler
	host   string
	// Held by every change, so that nothing happens between a condition and what it is the condition of.
	changing sync.Mutex
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Host = f.host // the server behind chooses by it, and a proxy before us has another one
	path := r.URL.EscapedPath()
	if r.Method == http.MethodGet {
		if listPath.MatchString(path) {
			f.list(w, r)
			return
		}
		f.behind.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client has gone in the middle of a request: it has not happened
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	f.changing.Lock()
	defer f.changing.Unlock()
	if status := f.refuse(r, path, body); status != 0 {
		writeError(w, status)
		return
	}
	f.behind.ServeHTTP(w, r)
}

// refuse gives the status of what must not happen, or 0.
func (f *front) refuse(r *http.Request, path string, body []byte) int {
	query := r.URL.Query()
	switch {
	case r.Method == http.MethodDelete && deletePath.MatchString(path):
		found := deletePath.FindStringSubmatch(path)
		if f.lookUp(found[1], found[2]) == 0 {
			return 0 // 404, which the server behind says
		}
		return f.compare(found[1], found[2], query.Get("ifGenerationMatch"))
	case r.Method == http.MethodPost && composePath.MatchString(path):
		found := composePath.FindStringSubmatch(path)
		var request struct {
			SourceObjects []struct {
				Name       string      `json:"name"`
				Generation json.Number `json:"generation"`
			} `json:"sourceObjects"`
		}
		if err := json.Unmarshal(body, &request); err != nil || len(request.SourceObjects) == 0 {
			return http.StatusBadRequest
		}
		for _, source := range request.SourceObjects {
			generation := f.lookUp(found[1], url.PathEscape(source.Name))
			if generation == 0 || (source.Generation != "" && source.Generation.String() != strconv.FormatInt(generation, 10)) {
				return http.StatusNotFound
			}
		}
		return f.compare(found[1], found[2], query.Get("ifGenerationMatch"))
	case r.Method == http.MethodPost && rewritePath.MatchString(path):
		found := rewritePath.FindStringSubmatch(path)
		if status := f.compare(found[1], found[2], query.Get("ifSourceGenerationMatch")); status != 0 {
			return status
		}
		return f.compare(found[3], found[4], query.Get("ifGenerationMatch"))
	}
	return 0
}

func (f *front) compare(bucket, name, wanted string) int {
	if wanted != "" && wanted != strconv.FormatInt(f.lookUp(bucket, name), 10) {
		return http.StatusPreconditionFailed
	}
	return 0
}

// lookUp gives an object's generation, 0 where there is none; both names as they stand in a path.
func (f *front) lookUp(bucket, name string) int64 {
	plainBucket, err1 := url.PathUnescape(bucket)
	plainName, err2 := url.PathUnescape(name)
	if err := errors.Join(err1, err2); err != nil {
		return 0
	}
	object, err := f.server.GetObjectStreaming(plainBucket, plainName)
	if err != nil {
		return 0
	}
	object.Close()
	return object.Generation
}

// list asks for everything, and cuts a page out of it.
func (f *front) list(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	after, err := base64.URLEncoding.DecodeString(query.Get("pageToken"))
	count, numberErr := strconv.Atoi(query.Get("maxResults"))
	if query.Get("maxResults") == "" {
		count, numberErr = 1000, nil
	}
	if err != nil || numberErr != nil || count < 1 {
		writeError(w, http.StatusBadRequest)
		return
	}
	for _, name := range []string{"pageToken", "maxResults", "fields"} {
		query.Del(name)
	}
	whole := r.Clone(r.Context())
	whole.URL.RawQuery = query.Encode()
	answer := httptest.NewRecorder()
	f.behind.ServeHTTP(answer, whole)
	var listing struct {
		Kind     string            `json:"kind"`
		Items    []json.RawMessage `json:"items,omitempty"`
		Prefixes []string          `json:"prefixes,omitempty"`
		Next     string            `json:"nextPageToken,omitempty"`
	}
	if answer.Code != http.StatusOK || json.Unmarshal(answer.Body.Bytes(), &listing) != nil {
		writeError(w, answer.Code)
		return
	}
	items := map[string]json.RawMessage{}
	names := append([]string{}, listing.Prefixes...)
	for _, item := range listing.Items {
		var object struct {
			Name string `json:"name"`
		}
		if err := json.Unmarshal(item, &object); err != nil {
			writeError(w, http.StatusInternalServerError)
			return
		}
		items[object.Name] = item
		names = append(names, object.Name)
	}
	sort.Strings(names)
	names = names[sort.Search(len(names), func(i int) bool { return len(after) == 0 || names[i] > string(after) }):]
	if len(names) > count {
		names = names[:count]
		listing.Next = base64.URLEncoding.EncodeToString([]byte(names[count-1]))
	}
	listing.Items, listing.Prefixes = nil, nil
	for _, name := range names {
		if item, ok := items[name]; ok {
			listing.Items = append(listing.Items, item)
		} else {
			listing.Prefixes = append(listing.Prefixes, name)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(listing)
}

func writeError(w http.ResponseWriter, status int) {
	reason := map[int]string{404: "notFound", 412: "conditionNotMet", 400: "invalid"}[status]
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":{"code":%d,"message":"%s","errors":[{"reason":"%s"}]}}`, status, http.StatusText(status), reason)
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	host := listener.Addr().String()
	server, err := fakestorage.NewServerWithOptions(fakestorage.Options{
		StorageRoot: strings.Join(os.Args[1:], ""), NoListener: true, PublicHost: host, ExternalURL: "http://" + host, Scheme: "http", Writer: io.Discard,
	})
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Printf("{\"port\": %s}\n", host[strings.LastIndex(host, ":")+1:])
	log.Fatal(http.Serve(listener, &front{server: server, behind: server.HTTPHandler(), host: host}))
}
