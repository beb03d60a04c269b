package main

import (
	"time"

	"hypersdk/cmd/terminal"
	"hypersdk/cmd/terminal/progress"
	"hypersdk/workflows/job"
)

// What this program takes of the packages about terminals, by the names that it is written in.

func clean(s string) string              { return terminal.Clean(s) }
func width(s string) int                 { return terminal.Width(s) }
func cut(s string, w int) string         { return terminal.Cut(s, w) }
func bytesText(n int64) string           { return terminal.BytesText(n) }
func rateText(mbps float64) string       { return terminal.RateText(mbps) }
func percentText(p float64) string       { return terminal.PercentText(p) }
func sinceText(t, now time.Time) string  { return terminal.SinceText(t, now) }
func title(j job.Job) string             { return progress.Title(j) }
func remark(j job.Job) string            { return progress.Remark(j) }
func percent(d job.DiskProgress) float64 { return progress.Percent(d) }

type table struct{ *terminal.Table }

func newTable(heads ...string) table { return table{terminal.NewTable(heads...)} }
func (t table) add(cells ...string)  { t.Add(cells...) }
func (a *app) printTable(t table)    { a.Screen().PrintTable(t.Table) }
