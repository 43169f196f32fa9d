/** The npm packages that vimgfs needs: how a missing one is recognised, and how the user gets it. */
import path from 'node:path'
import { fileURLToPath } from 'node:url'

/** The folder of package.json. */
export const FOLDER = path.resolve(fileURLToPath(new URL('..', import.meta.url)))

/**
 * Returns what the user can do, as the end of a sentence. koffi's binaries are optional dependencies of it.
 * @param isBroken whether the package is installed but cannot be used; npm would not replace it
 */
export function installHint(isBroken: boolean): string {
  const install = 'npm install --include=optional'
  if (path.basename(path.dirname(FOLDER)) === 'node_modules') {
    return `uninstall vimgfs, and install it again on this machine with ${install}`
  }
  const first = isBroken ? `delete ${path.join(FOLDER, 'node_modules')}, and ` : ''
  return `${first}install what is missing with ${install} --prefix ${FOLDER}`
}

/** Returns the name of the package that `error` says is not installed; undefined for any other error. */
export function missingPackage(error: unknown): string | undefined {
  const { code, message = '' } = error as Partial<NodeJS.ErrnoException>
  if (code !== 'ERR_MODULE_NOT_FOUND' && code !== 'MODULE_NOT_FOUND') return undefined
  return /^Cannot find (?:package|module) '([^'./][^']*)'/.exec(message)?.[1]
}
