/** All pages of the manual. */
import { allHelps } from '../cli/help/commands.js'
import { formatNames } from '../cli/help/names.js'
import { commandPages, overviewPage } from './command-pages.js'
import { FORMAT_PAGE } from './format-page.js'
import { mountPage } from './mount-page.js'
import { fileOf, source } from './roff.js'

/** Returns the source of each page by its file name. `date` is as in 2026-01-31. */
export async function manualPages(date: string, version: string): Promise<Map<string, string>> {
  const [helps, names] = await Promise.all([allHelps(), formatNames()])
  const pages = [overviewPage(helps), ...commandPages(helps, names), FORMAT_PAGE, mountPage(names)]
  return new Map(pages.map(page => [fileOf(page), source(page, date, version)]))
}
