/** The options of commands that may read an image that is not on this machine (docs/remote.md). */
import type { Options } from './description.js'

export const REMOTE_OPTIONS = {
  'cache-dir': {
    type: 'string',
    value: 'DIR',
    help: 'of an image on a server: where its blocks are kept ($XDG_CACHE_HOME/vimgfs)',
  },
  'cache-size': {
    type: 'string',
    value: 'SIZE',
    help: 'how large the cache may become (10G)',
  },
  'no-cache': {
    type: 'boolean',
    help: 'keep nothing on the disk',
  },
  offline: {
    type: 'boolean',
    help: 'read only what the cache has',
  },
  cacert: {
    type: 'string',
    value: 'FILE',
    help: "certificates to trust instead of the system's (PEM)",
  },
  timeout: {
    type: 'string',
    value: 'SECONDS',
    help: 'how long a server is asked again before reading fails (60)',
  },
} as const satisfies Options
